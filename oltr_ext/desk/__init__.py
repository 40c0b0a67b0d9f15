"""`oltr desk`: a local page on which a person names what a run does not know.

`state` is what was decided, as the replay of a log; `store` keeps the log; `folder` reads the
images, `thumbs` shows them small; `answers` asks the run; `desk` joins them for `app`, which serves
the page.
"""

PORT = 8765
