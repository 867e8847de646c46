import pytest

from segdiff_jax.evaluation.agreement import read_agreement
from segdiff_jax.runtime.errors import UserError


@pytest.mark.parametrize("header", ["id,agreement", "masks,ISIC_id,mean_pairwise_jaccard"])
def test_reads_ids_and_agreements(tmp_path, header):
    before = "2," * header.count("masks")
    lines = [header, f"{before}ISIC_0000004,0.8307", f"{before}b,1"]
    (tmp_path / "a.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert read_agreement(tmp_path / "a.csv") == {"ISIC_0000004": 0.8307, "b": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,agreement\na,1\n", "needs a header with one of the columns id, isic_id"),
        ("id,jaccard\na,1\n", "one of the columns agreement, mean_pairwise_jaccard"),
        ("", "needs a header"),
        ("id,agreement\na,0.5\nb,\n", r"line 3: agreement '' of 'b' is no number"),
        ("id,agreement\na,nan\n", "line 2: agreement 'nan' of 'a' is no number"),
        ("id,agreement\na\n", "line 2: agreement '' of 'a' is no number"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_agreement(tmp_path / "a.csv")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="a.csv cannot be read: .*No such file"):
        read_agreement(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes("id,agreement\né,0.5\n".encode("latin-1"))
    with pytest.raises(UserError, match="a.csv cannot be read: it is not UTF-8 text"):
        read_agreement(tmp_path / "a.csv")
