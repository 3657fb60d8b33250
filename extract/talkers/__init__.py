"""A small population of synthetic talking people, written as real mp4 files.

One hidden identity drives both a drawn face and a source-filter voice, so the two carry
information about each other, as they do in recordings of people. The population exists for demos
and tests: it needs no download, and no result on it says anything about real voices or faces.

    python -m extract.talkers --out data/demo/videos
"""
