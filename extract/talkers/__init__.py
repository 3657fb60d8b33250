"""A small population of synthetic talking people, written as real mp4 files.

One hidden identity determines both a drawn face and a source-filter voice, so each carries information about the
other, as in recordings of people. The population is for demos and tests: it needs no download, and results on it say
nothing about real voices or faces.

    python -m extract.talkers --out data/demo/videos
"""
