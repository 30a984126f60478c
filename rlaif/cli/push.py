"""`rlaif push`."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.echo import tell
from rlaif.cli.options import examples

__all__ = ["push"]


@click.command(
    epilog=examples(
        "rlaif push runs/mine/ppo me/my-policy --dry-run",
        "rlaif push runs/mine/ppo me/my-policy",
        "rlaif push runs/mine/ppo me/my-policy --merge --public",
        "rlaif push runs/mine/reward me/my-reward-model",
        "rlaif push runs/mine/label me/my-preferences",
    )
)
@click.argument("path", type=click.Path(path_type=Path, exists=True), metavar="PATH")
@click.argument("repo", metavar="REPO")
@click.option("--merge", is_flag=True, help="Push a full model, the adapter merged into its base.")
@click.option(
    "--public", is_flag=True, help="Make a repository that does not exist yet public; private otherwise."
)
@click.option("--dry-run", is_flag=True, help="List the files, and upload nothing.")
def push(path: Path, repo: str, merge: bool, public: bool, dry_run: bool) -> None:
    """Upload a policy, a reward model, a judge or labels with their card to the Hugging Face hub.

    PATH is the folder of a stage, an adapter, a reward model or a trained judge, or a file of preferences;
    REPO is NAME or ORGANISATION/NAME. The token is the one of huggingface_hub: HF_TOKEN, or what `hf auth
    login` keeps. Add a licence to the card first: rlaif chooses none. It is the README.md in the folder; that
    of labels, FILE.card.md, is written beside them.
    """
    from rlaif.cli.console import say
    from rlaif.pipeline.publish import prepare, upload

    parcel = prepare(path, merge=merge, write=not dry_run, log=say)
    for name, size in parcel.files:
        tell(f"{size:>14,}  {name}")
    if merge and dry_run:
        tell("with --merge a full model is made of this adapter and pushed in its place")
    if dry_run:
        tell(f"{len(parcel.files)} files would go to {repo}; nothing was uploaded")
        return
    tell(f"uploaded to {upload(parcel, repo, private=not public)}")
