"""Result lines, and the tables that are made of them."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from result_line import result

from common.errors import UserError
from common.files import folder_to_oneself
from common.results import append_result, comparable_groups, read_results, run_of, table_of
from common.tables import markdown_table, text_table


def test_lines_are_appended_and_none_is_written_twice(tmp_path):
    path = tmp_path / "results.jsonl"
    assert append_result(path, result())
    before = path.read_text()
    assert not append_result(path, result(seconds=99.0, machine="another"))
    assert append_result(path, result(seed=1))
    assert path.read_text().startswith(before)
    assert [line["seed"] for line in read_results(path)] == [0, 1]


def test_lines_that_come_at_once_are_all_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    with folder_to_oneself(tmp_path), ThreadPoolExecutor(8) as threads:  # a run that is trained there is no hindrance
        assert all(threads.map(lambda seed: append_result(path, result(seed=seed)), range(40)))
    assert {line["seed"] for line in read_results(path)} == set(range(40))


def test_a_file_without_its_last_newline_loses_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(result()))
    append_result(path, result(seed=1))
    assert [line["seed"] for line in read_results(path)] == [0, 1]


def test_a_line_that_is_no_result_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(result()) + '\n{"loss": 1}\n')
    with pytest.raises(UserError, match="line 2 of"):
        append_result(path, result(seed=1))
    assert len(path.read_text().splitlines()) == 2


def test_only_what_compares_stands_in_one_table():
    lines = [
        result(),
        result(num_samples=5000),
        result(reference_sha256="d"),
        result(inception_sha256="e"),
        result(seed=2),
    ]
    assert [len(group) for group in comparable_groups(lines)] == [2, 1, 1, 1]


def test_classes_stand_apart():
    assert len(comparable_groups([result(), result(classes=["cat"])])) == 2


def test_the_table_of_the_most_samples_comes_first():
    groups = comparable_groups([result(num_samples=number) for number in (5000, 50_000, 10_000)])
    assert [group[0]["num_samples"] for group in groups] == [50_000, 10_000, 5000]


def test_where_machines_differ_each_row_names_its_own():
    header, rows = table_of([result(), result(machine="another", arithmetic="bf16")])
    assert [row[header.index("measured on")] for row in rows] == ["some machine, fp32", "another, bf16"]
    assert "measured on" not in table_of([result(), result(seed=1)])[0]


def test_a_row_shows_the_figures_and_leaves_out_what_there_is_not():
    on_two_machines = [result(drawing_seconds=25.0), result(drawing_seconds=5.0, machine="another")]
    header, _ = table_of(on_two_machines, with_times=True)
    assert "ms an image" not in header and "FID" in header
    assert "ms an image" not in table_of([result(drawing_seconds=25.0)])[0]  # the machine may have done more
    header, (row,) = table_of([result(drawing_seconds=25.0)], with_times=True)
    shown = dict(zip(header, row, strict=True))
    assert shown["FID"] == "31.46" and shown["KID x 1000"] == "12.30" and shown["precision"] == "0.654"
    assert shown["training FLOP"] == f"{result()['training_flop']:.3g}"
    assert "recall" not in shown and shown["NFE"] == "7" and shown["seed"] == "0"
    assert shown["ms an image"] == "2.5"
    of_another_model = result(stage=None, solver=None, recall=0.5, drawing_seconds=25.0)
    header, rows = table_of([result(), of_another_model], with_times=True)
    assert "ms an image" not in header  # of the first it is not known, the second was drawn elsewhere
    assert [row[header.index("recall")] for row in rows] == ["", "0.500"]
    assert shown["run"] == "euler 4, CFG 2 for t in [0.1, 0.8]"
    assert run_of(result(stage=None, solver=None)) == ""
    run = {"loss": "l2", "feature_weight": None, "critic": None}
    finished = result(stage="one_step", training_runs=[run, run | {"loss": "pseudo-huber", "no_flips": True}])
    header, rows = table_of([result(), finished], with_ids=True, with_losses=True)
    assert [row[header.index("losses of its last run")] for row in rows] == ["", "pseudo-huber, no mirrored pairs"]
    assert [row[header.index("id")] for row in rows] == ["`aaaaaaaa`", "`aaaaaaaa`"]
    assert not {"id", "losses of its last run"} & {*table_of([finished])[0]}


def test_tables_line_up():
    lines = text_table(("a", "long name"), [("b", "1"), ("longer", "22")]).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[-1] == "longer         22"
    assert markdown_table(("a", "b", "c"), [("c", "1", "")]) == "| a | b | c |\n| --- | ---: | --- |\n| c | 1 |  |"
