"""What a trained model answers: read back, asked about images and embeddings, judged, written out.

`trained.load_trained` reads a run; `predict.predict_images`, `predict.predict_embeddings`,
`assess.assess` and `export.export` take what it returns; `embed.embed` takes a run, or a
configuration of `oltr_ext.config.loading.load_config`.
"""
