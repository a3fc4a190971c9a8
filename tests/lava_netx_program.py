"""Run in Lava's Python: load a netx file with lava-dl's own reader, stream events, write the output's spikes.

    python lava_netx_program.py net.net events.npy out.npy T layers

lava-dl's netx package imports torch for a part that is not needed here; its reader is loaded around that.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np

path, events_file, out_file, steps, layers = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
root = Path(__file__).resolve().parent.parent / "exporters" / "lava" / "program"
sys.path.insert(0, str(root))
import run  # the exported folders' own program
import stdeploy_lava.compat  # noqa: F401

spec = importlib.util.find_spec("lava.lib.dl")
(dl,) = spec.submodule_search_locations
for name in ("lava.lib.dl.netx", "lava.lib.dl.slayer", "lava.lib.dl.slayer.neuron"):
    package = types.ModuleType(name)
    package.__path__ = [str(Path(dl, *name.split(".")[3:]))]
    sys.modules[name] = package
rf = types.ModuleType("lava.lib.dl.slayer.neuron.rf")
rf.neuron_params = None
sys.modules[rf.__name__] = rf
# Lava imports every module beside a process that it looks for a model of.
unused = types.ModuleType("lava.lib.dl.netx.sequential_modules")
unused.__file__ = str(Path(dl, "netx", "sequential_modules.py"))
sys.modules[unused.__name__] = unused

from lava.lib.dl.netx.hdf5 import Network
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Source

if __name__ == "__main__":
    run.report_at_once()
    events = np.load(events_file)  # [*shape, steps], the shape as the network takes it
    total = events.shape[-1] + layers
    bits = 0 if events.max() <= 1 else 8
    net = Network(path, input_message_bits=bits, reset_interval=steps, reset_offset=1)
    padded = np.concatenate([events, np.zeros((*events.shape[:-1], layers), events.dtype)], axis=-1)
    source = Source(data=padded.astype(np.int32))
    source.s_out.connect(net.inp)
    sink = Sink(shape=net.out.shape, buffer=total)
    net.out.connect(sink.a_in)
    net.run(condition=RunSteps(num_steps=total), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    np.save(out_file, sink.data.get()[..., layers:])
    net.stop()
