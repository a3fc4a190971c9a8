"""The main job on the shipped sample: export to ONNX and NIR, verify both on 256 images, print a table.

python samples/demo.py [CHECKPOINT]    (default: samples/pruned.pt)
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stdeploy import running, workflow
from stdeploy.cli.console import size_text
from stdeploy.data import load_data

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
WIDTH = 140
"""Columns of the table where the output is no terminal."""


def main(checkpoint: Path = HERE / "pruned.pt") -> int:
    console = Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH)
    OUT.mkdir(exist_ok=True)
    source = workflow.open_source(checkpoint)
    console.print(
        f"traced {source.path.name}: {len(source.graph)} nodes, {len(source.graph.neurons)} neuron layers"
    )
    images, labels = load_data(HERE / "test_images.npz", source.graph)
    table = Table(title=f"{source.path.name}, {len(images)} Fashion-MNIST test images", box=None)
    for title in ("file", "read by"):
        table.add_column(title)
    for title in ("size", "spikes compared", "differ", "unexplained", "argmax", "accuracy", "torch's"):
        table.add_column(title, justify="right")
    ok = True
    for target in ("onnx", "nir"):
        lowered = workflow.lower(source.graph, target)
        path = OUT / f"{checkpoint.stem}{workflow.suffix_of(target)}"
        artifact = workflow.export(source, lowered, path)
        console.print(f"wrote {path.relative_to(HERE.parent)}, {size_text(artifact.size_bytes)}")
        readers = running.executors(path)
        names = ", ".join(reader.name for reader in readers)
        console.print(f"verifying {path.name} in {names} ...")
        for reader, report in zip(
            readers, workflow.check_all(source, lowered.graph, readers, images, labels), strict=True
        ):
            (logits,) = report.outputs
            wrong = sum(layer.unexplained + layer.reference_unexplained for layer in report.layers)
            table.add_row(
                path.name,
                reader.name,
                size_text(artifact.size_bytes),
                f"{report.spikes_compared:,}",
                f"{report.spike_mismatches:,}",
                f"{wrong:,}",
                f"{logits.argmax_agree}/{logits.samples}",
                f"{(logits.candidate_correct or 0) / logits.samples:.2%}",
                f"{(logits.reference_correct or 0) / logits.samples:.2%}",
            )
            if report.mismatches or not report.ok:
                console.print(report.render())
            ok = ok and report.ok
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    print(
        f"source: {source.path.stat().st_size:,} bytes; a difference counts as explained only within float rounding"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
