"""`report.html`: what a run, its rounds or a study found, on one page without anything from elsewhere."""

from rlaif.report.page.picture_files import save_pictures
from rlaif.report.page.render import page_html
from rlaif.report.page.rounds import rounds_page
from rlaif.report.page.run import run_page
from rlaif.report.page.study import study_page

__all__ = ["REPORT", "page_html", "rounds_page", "run_page", "save_pictures", "study_page"]

REPORT = "report.html"
"""Its name in the folder of the run, of its rounds or of the study."""
