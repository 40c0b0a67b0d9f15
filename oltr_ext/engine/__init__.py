"""How a run trains: its data, its model, its steps, what it keeps, and what is settled at its end.

`train.train` takes a configuration of `oltr_ext.config.loading.load_config`.
"""
