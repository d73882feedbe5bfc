"""The benchmark of recipes: its quick variant runs every method, keeps rows and reuses them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from benchmarks.recipes.__main__ import checks_of, main
from benchmarks.recipes.experiment import METHODS


def test_quick_run_keeps_every_row_and_goes_on_from_it(tmp_path, capsys):
    file = tmp_path / "report.json"
    arguments = ["--quick", "--tasks", "MLP", "--json", str(file)]
    main([*arguments, "--methods", "rounding,default"])
    (rounding, default) = json.loads(file.read_text())["rows"]
    assert (rounding["moved"], rounding["train_s"] < default["train_s"]) == (0.0, True)
    assert main(arguments).rows[1:3] == [rounding, default]
    found = json.loads(file.read_text())
    assert {row["method"] for row in found["rows"]} >= {*METHODS} - {"PARQ"}
    assert next(r for r in found["rows"] if r["method"] == "stochastic_rounding")["moved"] > 0
    assert all(0 < row["loss"] < 3 for row in found["rows"])
    assert "stochastic_rounding" in capsys.readouterr().out


def test_checks_compare_means_by_the_spread_of_a_difference():
    def runs(method: str, losses: list[float], moved: float = 1.0) -> list[dict[str, object]]:
        row = {"task": "MLP", "method": method, "moved": moved}
        return [{**row, "seed": seed, "loss": loss} for seed, loss in enumerate(losses)]

    rows = [*runs("rounding", [3.0, 3.0], 0.0), *runs("default", [1.1, 1.3])]
    rows += [*runs("LSQ", [1.0, 1.2]), *runs("PARQ", [0.9, 0.9]), *runs("ste", [4.0, 4.0], 0.0)]
    failed = [check.name for check in checks_of(rows) if not check.holds]
    assert failed == [
        "MLP: loss of the default less that of PARQ",
        "MLP: loss of ste over that of rounding",
        "MLP: changes of code per group with ste",
    ]


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--quick", "--methods", "magic"])
    assert "unknown name 'magic'" in capsys.readouterr().err
