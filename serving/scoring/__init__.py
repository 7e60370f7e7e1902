"""Classifies whole data sets into Parquet files, on this machine or on a Ray cluster.

    location        local paths and URIs, opened by pyarrow
    dataset         what is read: pieces, and a reader of each format
    parquet, arrays, idx, npz, picture_folder
                    the formats
    opening         which format an input has
    pixels          a column of bytes or lists to images
    decoders        processes that decode pictures
    scorer          one piece: read, run, write
    output          one file a piece, whole or not there; what a folder holds already
    threads         pieces on this machine's cores
    ray_actors      the same on a cluster

A data set is cut into pieces, always the same ones. Each piece becomes one file, whose name says
which piece of which data set it is, by which model. A file that is there is never made again: that
is all there is to going on after an interruption, and to retries on a cluster.
"""
