"""Training, evaluation and prediction: what the command `oltr` does, as functions.

`train.train`, `predict.load_trained`, `predict.predict_images`, `predict.predict_embeddings`,
`assess.assess` and `embed.embed` take a configuration of
`oltr_ext.config.loading.load_config`.
"""
