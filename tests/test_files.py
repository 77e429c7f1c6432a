"""Checkpoints and atomic writes."""

import dataclasses
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CONFIG, folder_contents, random_network
from safetensors.torch import load_file, save_file

from common.checkpoint import load_checkpoint, load_header, load_initial_weights, save_checkpoint
from common.errors import UserError
from common.files import atomic_write, readable, require_writable, sha256
from common.training_state import load_training_state
from common.unet import RETIRED_OPTIONS, UNet


def test_a_checkpoint_rebuilds_the_model_from_its_file_alone(make_teacher):
    path = make_teacher(seed=3)
    loaded = load_checkpoint(path)
    x, t = torch.randn(2, 3, 32, 32), torch.rand(2)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x, t), random_network(seed=3)(x, t), atol=1e-5, rtol=1e-4)
    assert loaded.model.config == SMALL_CONFIG and not loaded.model.training
    assert loaded.sha256 == sha256(path) and len(loaded.sha256) == 64


def test_equal_models_give_equal_files(tmp_path):
    header = {"stage": "teacher", "class_names": [], "arguments": {"label_dropout": 0.0}, "step": 0}
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, random_network(), dict(reversed(header.items()) if name == "b" else header))
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_damaged_and_foreign_checkpoints_are_refused_in_one_line(tmp_path, make_teacher):
    good = make_teacher()
    (tmp_path / "cut").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "text").write_text("hello")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickle")
    for name, message in [
        ("cut", "not a readable checkpoint"),
        ("text", "not a readable checkpoint"),
        ("pickle", "not a readable checkpoint"),
        ("foreign", "not a checkpoint of this project"),
        ("missing", "there is no checkpoint"),
    ]:
        for load in (load_checkpoint, load_header):
            with pytest.raises(UserError, match=message) as caught:
                load(tmp_path / name)
            assert "\n" not in str(caught.value)


def with_config(path: Path, changes: dict) -> Path:
    """The same checkpoint with a header whose configuration says something else."""
    header = load_header(path)
    header["config"] |= changes
    changed = path.with_stem(f"{path.stem}_changed")
    save_file(load_file(path), changed, metadata={"header": json.dumps(header)})
    return changed


def test_a_checkpoint_that_names_retired_options_of_the_network_is_the_same_model(make_teacher):
    path = make_teacher(seed=3)
    earlier = load_checkpoint(with_config(path, RETIRED_OPTIONS)).model
    assert earlier.config == SMALL_CONFIG
    for name, value in load_checkpoint(path).model.state_dict().items():
        assert torch.equal(earlier.state_dict()[name], value)


def test_a_checkpoint_of_a_network_that_is_gone_is_refused(make_teacher):
    path = with_config(make_teacher(), RETIRED_OPTIONS | {"activation": "relu"})
    with pytest.raises(UserError, match="do not fit the network that its header describes"):
        load_checkpoint(path)


def test_weights_of_another_architecture_are_refused(make_teacher):
    other = UNet(dataclasses.replace(SMALL_CONFIG, widths=(16, 32)))
    with pytest.raises(UserError, match="another network"):
        load_initial_weights(other, make_teacher())


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    before = folder_contents(tmp_path)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half of the new")
        raise KeyboardInterrupt
    assert folder_contents(tmp_path) == before
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and len(folder_contents(tmp_path)) == 1


def test_what_a_killed_process_of_this_machine_left_is_removed(tmp_path):
    """That of another machine, which shares the folder, may still be written, but not a day later."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    ours = tmp_path / f".file.txt.{socket.gethostname()}.{gone.pid}.partial"
    theirs = tmp_path / f".file.txt.another-machine.{gone.pid}.partial"
    old = tmp_path / f".file.txt.{gone.pid}.partial"  # as it was once named
    for path in (ours, theirs, old):
        path.write_text("half")
    os.utime(old, (0, 0))
    with atomic_write(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"file.txt", theirs.name}


def test_what_could_not_be_written_later_is_refused_now(tmp_path):
    (tmp_path / "file").touch()
    require_writable(tmp_path / "new" / "folder" / "file")
    for path in (tmp_path, tmp_path / "file" / "below", Path("/")):
        with pytest.raises(UserError, match="cannot write"):
            require_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_lack_of_memory_is_no_damage(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="can't allocate"), readable(tmp_path / "file", "checkpoint"):
        torch.empty(10**15)


def test_pickled_objects_are_never_loaded(tmp_path):
    torch.save({"module": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")
    with pytest.raises(UserError, match="not a readable training state"):
        load_training_state(tmp_path / "module.pt")
