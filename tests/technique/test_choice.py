"""What a stage chose is read again where its file is whole, and chosen anew where it is not."""

from pathlib import Path

import torch

from slimexp.technique.choice import Choice, kept

CPU = torch.device("cpu")


def test_it_is_chosen_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def choose() -> Choice:
        calls.append(1)
        return {"ffn": {"block.0": torch.tensor([0, 3, 5])}, "hidden": {"": torch.tensor([1])}}

    path = tmp_path / "choice.json"
    for path_given, expected in ((None, 1), (None, 2), (path, 3), (path, 3)):
        chosen = kept(path_given, choose, CPU)
        assert len(calls) == expected
        assert {axis: {scope: i.tolist() for scope, i in of.items()} for axis, of in chosen.items()} == {
            "ffn": {"block.0": [0, 3, 5]}, "hidden": {"": [1]}
        }  # fmt: skip
        assert all(i.dtype == torch.int64 for of in chosen.values() for i in of.values())
    path.write_text(path.read_text().replace("3", "4"))
    assert kept(path, choose, CPU)["ffn"]["block.0"].tolist() == [0, 3, 5] and len(calls) == 4
    assert kept(path, choose, CPU)["ffn"]["block.0"].tolist() == [0, 3, 5] and len(calls) == 4
