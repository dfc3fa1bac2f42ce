"""AdamW with learning rate and weight decay modulated per param group by a small Transformer."""

from metaadamw.batches import NumberedBatches
from metaadamw.carried import carried_factors
from metaadamw.config import MetaConfig, ModulatorConfig
from metaadamw.groups import fine_grained_groups, group_table
from metaadamw.meta_update import MetaUpdate
from metaadamw.modulator import Modulation
from metaadamw.optimizer import MetaAdamW
from metaadamw.presets import online_preset, paper_preset, windows_preset
from metaadamw.recording import Recorder
from metaadamw.replay import Schedule
from metaadamw.uncertainty import PriorityUncertaintyWeighting

__version__ = "0.1.0"

__all__ = [
    "MetaAdamW",
    "MetaConfig",
    "MetaUpdate",
    "Modulation",
    "ModulatorConfig",
    "NumberedBatches",
    "PriorityUncertaintyWeighting",
    "Recorder",
    "Schedule",
    "carried_factors",
    "fine_grained_groups",
    "group_table",
    "online_preset",
    "paper_preset",
    "windows_preset",
]
