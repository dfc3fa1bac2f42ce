"""Algorithm 2: try a step, measure it on further batches, move the modulator accordingly.

From the options inwards: ``lookahead`` (when, by what), ``objective`` (which terms),
``meta_update`` (from batches to report), ``step`` (θ → θ′), ``alignment`` (Eq. 10),
``objectives`` (Eqs. 10–12), ``uncertainty`` (Eq. 13), ``evaluation`` and ``undisturbed`` (the
user's model, and no trace in it).
"""
