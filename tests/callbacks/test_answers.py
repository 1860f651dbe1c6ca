"""The table of sample answers."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from cropl.callbacks.answers import SampleAnswers, table


class Answering(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, index):
        flat = [row for rows in batch["questions"] for row in rows]
        return {"answers": [None if row["answer"] == "skip" else row["answer"].upper() + row["more"] for row in flat]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _row(number, answer="red", more="", **options):
    return {"question": f"What is {number}\n| there?", "answer": answer, "more": more, **options}


BATCHES = [
    {"questions": [[_row(0), _row(1, "skip")], [_row(2, valid=False)]]},
    {"questions": [[_row(3, more=" star")], [_row(4)], [_row(5)]]},
]


def test_the_first_questions_are_shown(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[SampleAnswers(3)], num_sanity_val_steps=1,
    )  # fmt: skip
    data = DataLoader([0, 1])
    trainer.fit(Answering(), data, DataLoader(BATCHES, batch_size=None))
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["step-000002.md"]
    text = (tmp_path / "answers" / "step-000002.md").read_text()
    assert text.splitlines()[2:] == [
        "| What is 0 \\| there? | red | RED |  |",
        "| What is 3 \\| there? | red | RED star | x |",
        "| What is 4 \\| there? | red | RED |  |",
    ]
    logged = EventAccumulator(str(tmp_path)).Reload()
    assert "answers/text_summary" in logged.Tags()["tensors"]


def test_long_answers_are_cut():
    lines = table([("q", "a" * 400, "b")]).splitlines()
    assert f"| {'a' * 297}... |" in lines[2]
