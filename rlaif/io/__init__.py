"""Files of data: the forms that people have, tables in every format, and the writers of our own rows."""
