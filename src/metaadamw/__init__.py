"""AdamW that learns, while it trains, a learning rate and a weight decay for each param group."""

from metaadamw.grouping.fine_grained import fine_grained_groups, group_table
from metaadamw.learning.hypergradient import Hypergradient
from metaadamw.learning.lookahead.batches import NumberedBatches
from metaadamw.learning.lookahead.lookahead import LookAhead
from metaadamw.learning.lookahead.meta_update import MetaUpdate
from metaadamw.learning.lookahead.uncertainty import PriorityUncertaintyWeighting
from metaadamw.learning.off import Off
from metaadamw.learning.two_horizons import TwoHorizons
from metaadamw.learning.windows import Windows
from metaadamw.modulators.attention import Attention
from metaadamw.modulators.base import Modulation
from metaadamw.modulators.carried import carried_factors
from metaadamw.modulators.factors import Factors
from metaadamw.modulators.schedule import Schedule
from metaadamw.optimizer import MetaAdamW
from metaadamw.presets import paper_preset
from metaadamw.recording.export import adamw_groups
from metaadamw.recording.recorder import Recorder

__version__ = "0.2.0"

__all__ = [
    "Attention",
    "Factors",
    "Hypergradient",
    "LookAhead",
    "MetaAdamW",
    "MetaUpdate",
    "Modulation",
    "NumberedBatches",
    "Off",
    "PriorityUncertaintyWeighting",
    "Recorder",
    "Schedule",
    "TwoHorizons",
    "Windows",
    "adamw_groups",
    "carried_factors",
    "fine_grained_groups",
    "group_table",
    "paper_preset",
]
