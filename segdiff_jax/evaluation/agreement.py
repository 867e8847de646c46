"""A table that says how far annotators agree on each image."""

import csv
import io
import math
from pathlib import Path

from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import read_given

IDS = "id", "isic_id", "image", "image_id"
AGREEMENTS = "agreement", "mean_pairwise_jaccard"


def read_agreement(path: str | Path) -> dict[str, float]:
    """{id: agreement} of a CSV file with a header; a UserError names what is wrong in it.

    The id's column is one of `IDS`, the agreement's one of `AGREEMENTS`, in any case; others do not
    count. Agreements are numbers, larger ones for more agreement: for IMA++ (Abhishek et al. 2025,
    arXiv 2512.21472), the mean IoU of every two annotators.
    """
    rows = list(csv.DictReader(io.StringIO(read_given(path, str(path)), newline="")))
    header = {name.lower(): name for name in (rows[0] if rows else ()) if name}
    columns = [next((header[n] for n in names if n in header), None) for names in (IDS, AGREEMENTS)]
    for column, names in zip(columns, (IDS, AGREEMENTS), strict=True):
        if column is None:
            raise UserError(f"{path} needs a header with one of the columns {', '.join(names)}")
    found = {}
    for number, row in enumerate(rows, 2):
        id, text = (row[column] or "" for column in columns)
        try:
            found[id] = float(text)
        except ValueError:
            found[id] = math.nan
        if not id or not math.isfinite(found[id]):
            raise UserError(f"{path}, line {number}: {columns[1]} {text!r} of {id!r} is no number")
    return found
