"""The page of `tagi serve`: a task and inputs in, answers and what there is to see of them out. Needs gradio, so that
nothing else imports this room."""
