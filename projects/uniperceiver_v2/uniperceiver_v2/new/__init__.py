"""Looks at a folder of data and writes a configuration to start from.

    python -m uniperceiver_v2.new my_data/ [--output my_data.yaml] [--weights CHECKPOINT] [--base CONFIG]

It says what it saw: datasets with their formats, pictures, categories with counts, and broken files. Sizes, anchors,
iterations and the split into training and test follow from the data. The comments of the configuration say how.
"""
