"""A web page on the predictor: ``python -m uniperceiver_v2.web``.

limits.py   how much a visitor may ask
worker.py   one thread that owns the model, and deadlines
answers.py  questions about uploaded pictures, each encoded once
index.py    the folder that can be searched
page.py     the page itself, in gradio
server.py   what the server refuses before gradio sees it
"""
