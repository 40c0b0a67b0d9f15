"""What a run is told: every key, the methods, the packaged recipes, and how a file becomes both.

`loading.load_config` reads a file or a packaged recipe; `schema.Config` is what comes of it.
"""
