"""Copies and groups share a split."""

import pytest

from segdiff_jax.data.groups import (
    Groups,
    check_groups,
    groups_of,
    leave_out_copies,
    split_by_group,
)
from segdiff_jax.runtime.errors import UserError

IDS = ["p1_a", "p1_b", "p2_a", "x"]


def table(tmp_path, *lines):
    path = tmp_path / "groups.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # As Excel writes it.
    return Groups(file=str(path))


def test_groups_of_a_pattern_and_of_a_file(tmp_path):
    of_pattern = groups_of(IDS, Groups(pattern="^(p[0-9])_"))
    assert of_pattern == {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2"}
    assert groups_of(IDS, Groups(pattern="^(p[0-9])?")) == of_pattern  # x has no group.
    assert groups_of(IDS, Groups(pattern="[a-x]$"))["p2_a"] == "a"  # Without parentheses: all.
    groups = table(tmp_path, "age,group,id", "9,m,p1_a.JPG", "9,m,p2_a", "9,,x", "9,n,absent")
    assert groups_of(IDS, groups) == {"p1_a": "m", "p2_a": "m"}
    dotted = table(tmp_path, "group,id", "1,case.001", "2,case.002")
    assert groups_of(["case.001", "case.002"], dotted) == {"case.001": "1", "case.002": "2"}
    assert groups_of(IDS, Groups()) == {}


def test_images_without_a_group_are_told_and_all_of_them_are_refused(capsys):
    groups = Groups(pattern="p1")
    check_groups(IDS, groups_of(IDS, groups), groups)
    said = "data.group_pattern='p1' has no group for 2 of the images: p2_a, x\n"
    assert capsys.readouterr().out == said
    check_groups(IDS, {}, Groups())
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="'q' has a group for none of 4 images, such as p1_a"):
        check_groups(IDS, groups_of(IDS, Groups(pattern="q")), Groups(pattern="q"))


@pytest.mark.parametrize(
    "lines, message",
    [
        (["id,patient", "p1_a,1"], "must have the columns id and group; it has id, patient"),
        (["id,group", "p1_a,1", "p1_a.png,2"], ": p1_a has two groups, 1 and 2"),
        (["group,id", "1,x", "2"], ", line 3: there are too few columns"),
        ([""], "must have the columns id and group"),
    ],
)
def test_a_file_of_groups_that_does_not_fit(tmp_path, lines, message):
    with pytest.raises(UserError, match=f"data.group_file='.*groups.csv'.*{message}"):
        groups_of(IDS, table(tmp_path, *lines))


def test_a_pattern_or_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"data.group_pattern='\(' is no regular expression"):
        groups_of(IDS, Groups(pattern="("))
    with pytest.raises(
        UserError, match=r"data.group_file='/no/such.csv' cannot be read: .*No such"
    ):
        groups_of(IDS, Groups(file="/no/such.csv"))


def test_groups_differ_by_pattern_and_by_the_files_contents(tmp_path):
    one = table(tmp_path, "id,group", "x,1")
    seen = {one.fingerprint(), Groups().fingerprint(), Groups(pattern="x").fingerprint()}
    table(tmp_path, "id,group", "x,2")
    assert len(seen | {one.fingerprint()}) == 4


def test_images_that_have_anything_in_common_share_a_split(capsys):
    """c and a are one image, a and d of one group, e and d one image: one chain."""
    keys = {"b": ["2"], "c": ["1"], "a": ["1", "g"], "d": ["3", "g"], "e": ["3"], "f": ["4"]}
    seen = []

    def split(ids):
        seen.extend(ids)
        return {"train": ["b", "f"], "validation": ["a"]}

    found = split_by_group(keys, split)
    assert seen == ["a", "b", "f"]
    assert found == {"train": ["b", "f"], "validation": ["a", "c", "d", "e"]}
    assert capsys.readouterr().out == "copies of other images: 2; copies share a split\n"


def test_training_images_that_a_later_part_has_are_left_out(capsys):
    """Of x and y, which are one image, y is of a test image's group, so both are."""
    training = {"a": ["1", "g1"], "b": ["2", "g2"], "c": ["3"], "x": ["6"], "y": ["6", "g1"]}
    parts = {"training": training, "official": {"d": ["4"]}, "test": {"e": ["3"], "f": ["5", "g1"]}}
    kept = leave_out_copies(parts)
    assert kept == parts | {"training": {"b": ["2", "g2"]}} and list(kept) == list(parts)
    said = "left out, because test has the same image or group: 4 (a, c, x, y)\n"
    assert capsys.readouterr().out == said
