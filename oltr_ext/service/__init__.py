"""`oltr serve`: a trained model over HTTP, on Starlette and uvicorn (`pip install oltr_ext[web]`).

`run.serve` starts it; `app.make_app` is the ASGI application. `batches` is the one thread that asks
the model, `model` what it asks, `bodies` what a request holds, `room` how much is let in,
`classes` who joins while it runs.
"""
