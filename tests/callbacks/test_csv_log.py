"""Logs of earlier starts stay."""

from cropl.callbacks.csv_log import CSVLog


def test_each_start_has_its_log(tmp_path) -> None:
    for start in range(3):
        log = CSVLog(str(tmp_path), name="run", version="")
        log.log_metrics({"loss": float(start)}, step=start)
        log.save()
    names = {path.name: path.read_text() for path in (tmp_path / "run").glob("*.csv")}
    assert sorted(names) == ["metrics.1.csv", "metrics.2.csv", "metrics.csv"]
    assert [names[f"metrics{n}.csv"].splitlines()[1].split(",")[0] for n in (".1", ".2", "")] == ["0.0", "1.0", "2.0"]
