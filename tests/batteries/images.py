"""Image files and what they are read as; test_images.py makes each file and decodes it. One line a case.

`what` is for people; `refused` is a part of the refusal, for files that are not read. The other words say how the
file is made: they are the arguments of the functions in test_images.py.
"""

PNG = [{"what": "grey, 1 bit", "bits": 1, "colour": "grey"}, {"what": "grey, 2 bits", "bits": 2, "colour": "grey"},
       {"what": "grey, 4 bits", "bits": 4, "colour": "grey"}, {"what": "grey, 8 bits", "bits": 8, "colour": "grey"},
       {"what": "grey, 16 bits", "bits": 16, "colour":
        "grey"}, {"what": "grey, 1 bit, a transparent value", "bits": 1, "colour": "grey", "transparent": True},
       {"what": "grey, 2 bits, a transparent value", "bits": 2, "colour": "grey", "transparent":
        True}, {"what": "grey, 4 bits, a transparent value", "bits": 4, "colour": "grey", "transparent":
                True}, {"what": "grey, 8 bits, a transparent value", "bits": 8, "colour": "grey", "transparent": True},
       {"what": "grey, 16 bits, a transparent value", "bits": 16, "colour": "grey", "transparent":
        True}, {"what": "grey, 1 bit, interlaced", "bits": 1, "colour": "grey", "interlaced":
                True}, {"what": "grey, 16 bits, interlaced", "bits": 16, "colour": "grey", "interlaced":
                        True}, {"what": "grey, 16 bits, black all over", "bits": 16, "colour": "grey", "top":
                                0}, {"what": "grey, 15 of 16 bits used", "bits": 16, "colour": "grey", "top": 32767},
       {"what": "grey, 14 of 16 bits used", "bits": 16, "colour": "grey", "top": 16383, "refused": "low bits"
        }, {"what": "grey, 12 of 16 bits used", "bits": 16, "colour": "grey", "top": 4095, "refused": "low bits"}, {
            "what": "grey, 8 of 16 bits used", "bits": 16, "colour": "grey", "top": 255, "refused": "low bits"
        }, {"what": "grey and alpha, 8 bits", "bits": 8, "colour":
            "grey+alpha"}, {"what": "grey and alpha, 16 bits", "bits": 16, "colour": "grey+alpha"}, {
                "what": "grey and alpha, 12 of 16 bits", "bits": 16, "colour": "grey+alpha", "top": 4095, "refused":
                "low bits"
            }, {"what": "RGB, 8 bits", "bits": 8, "colour":
                "rgb"}, {"what": "RGB, 8 bits, a transparent colour", "bits": 8, "colour": "rgb", "transparent":
                         True}, {"what": "RGB, 8 bits, interlaced", "bits": 8, "colour": "rgb", "interlaced":
                                 True}, {"what": "RGB, 16 bits", "bits": 16, "colour": "rgb"}, {
                                     "what": "RGB, 16 bits, one transparent", "bits": 16, "colour": "rgb",
                                     "transparent": True, "refused": "16-bit colour"
                                 },
       {"what": "RGB, 12 of 16 bits used", "bits": 16, "colour": "rgb", "top": 4095, "refused":
        "low bits"}, {"what": "RGB, 8 of 16 bits used", "bits": 16, "colour": "rgb", "top": 255, "refused":
                      "low bits"}, {"what": "RGBA, 8 bits", "bits": 8, "colour":
                                    "rgba"}, {"what": "RGBA, 16 bits", "bits": 16, "colour":
                                              "rgba"}, {"what": "palette, 1 bit", "bits": 1, "colour": "palette"},
       {"what": "palette, 2 bits", "bits": 2, "colour":
        "palette"}, {"what": "palette, 4 bits", "bits": 4, "colour":
                     "palette"}, {"what": "palette, 8 bits", "bits": 8, "colour": "palette"},
       {"what": "palette, 4 bits, a transparent entry", "bits": 4, "colour": "palette", "transparent":
        True}, {"what": "EXIF data that are no EXIF data", "bits": 8, "colour": "rgb", "extra": "exif"}, {
            "what":
            "EXIF data with a wrong checksum", "bits": 8, "colour": "rgb", "extra": "exif checksum"
        }, {"what": "a text with a wrong checksum", "bits": 8, "colour": "rgb", "extra":
            "text checksum"}, {"what": "a resolution cut short", "bits": 8, "colour": "rgb", "extra": "short pHYs"}, {
                "what": "a colour profile that is none", "bits": 8, "colour": "rgb", "extra": "profile"
            }, {"what": "pixels cut short", "bits": 8, "colour": "rgb", "extra": "cut", "refused":
                "cannot be decoded"}, ]
TIFF = [{"what": "grey, 1 bit", "bits": 1, "colour": "black"}, {"what": "grey, 2 bits", "bits": 2, "colour": "black"},
        {"what": "grey, 4 bits", "bits": 4, "colour":
         "black"}, {"what": "grey, 6 bits", "bits": 6, "colour": "black", "refused":
                    "not read"}, {"what": "grey, 8 bits", "bits": 8, "colour": "black"},
        {"what": "grey, 10 bits", "bits": 10, "colour": "black", "refused":
         "not read"}, {"what": "grey, 12 bits", "bits": 12, "colour":
                       "black"}, {"what": "grey, 14 bits", "bits": 14, "colour": "black", "refused":
                                  "not read"}, {"what": "grey, 16 bits", "bits": 16, "colour": "black"},
        {"what": "grey, 24 bits", "bits": 24, "colour": "black", "refused":
         "not read"}, {"what": "grey, 32 bits", "bits": 32, "colour": "black", "refused": "no defined black"
                       }, {"what": "grey, 1 bit, zero white", "bits": 1, "colour":
                           "white"}, {"what": "grey, 2 bits, zero white", "bits": 2, "colour":
                                      "white"}, {"what": "grey, 4 bits, zero white", "bits": 4, "colour": "white"},
        {"what": "grey, 8 bits, zero white", "bits": 8, "colour":
         "white"}, {"what": "grey, 12 bits, zero white", "bits": 12, "colour": "white", "refused":
                    "not read"}, {"what": "grey, 16 bits, zero white", "bits": 16, "colour": "white"},
        {"what": "grey, 16 bits, zero white, compressed", "bits": 16, "colour": "white", "deflate":
         True}, {"what": "grey, 8 bits, big endian", "bits": 8, "colour": "black", "order":
                 ">"}, {"what": "grey, 16 bits, big endian", "bits": 16, "colour": "black", "order": ">"},
        {"what": "grey, 16 bits, big endian, compressed", "bits": 16, "colour": "black", "order": ">", "deflate": True
         }, {"what": "grey, 12 bits, big endian", "bits": 12, "colour": "black", "order": ">", "refused": "not read"}, {
             "what": "grey, 16 bits, zero white, big endian", "bits": 16, "colour": "white", "order": ">", "refused":
             "not read"
         }, {"what": "grey, 16 bits, tiled", "bits": 16, "colour": "black", "tile":
             16}, {"what": "grey, 16 bits, tiled, big endian", "bits": 16, "colour": "black", "tile": 16, "order":
                   ">"}, {"what": "grey, 12 bits, compressed", "bits": 12, "colour": "black", "deflate": True},
        {"what": "grey, 12 of 16 bits used", "bits": 16, "colour": "black", "top": 4095, "refused": "low bits"}, {
            "what": "grey, 12 of 16 bits used, zero white", "bits": 16, "colour": "white", "top": 4095, "refused":
            "low bits"
        }, {"what": "grey, 16 bits, white is 4095", "bits": 16, "colour": "black", "top": 4095, "range": (0, 4095)}, {
            "what": "grey, 8 bits, signed", "bits": 8, "colour": "black", "sample": "signed", "refused":
            "no defined black"
        }, {
            "what": "grey, 16 bits, signed", "bits": 16, "colour": "black", "sample": "signed", "refused":
            "no defined black"
        }, {
            "what": "grey, 32 bits, signed", "bits": 32, "colour": "black", "sample": "signed", "refused":
            "no defined black"
        }, {"what": "grey, 16-bit float", "bits": 16, "colour": "black", "sample": "float", "refused": "not read"},
        {"what": "grey, 32-bit float", "bits": 32, "colour": "black", "sample": "float", "refused":
         "no defined black"}, {
             "what": "grey, 32-bit float, white is 1", "bits": 32, "colour": "black", "sample": "float", "range": (0, 1)
         }, {"what": "grey, 64-bit float", "bits": 64, "colour": "black", "sample": "float", "refused":
             "not read"}, {"what": "grey and alpha, 8 bits", "bits": 8, "colour": "black+alpha"}, {
                 "what": "grey and alpha, 16 bits", "bits": 16, "colour": "black+alpha", "refused": "not read"
             }, {"what": "RGB, 8 bits", "bits": 8, "colour":
                 "rgb"}, {"what": "RGB, 8 bits, separate planes", "bits": 8, "colour": "rgb", "planes":
                          True}, {"what": "RGB, 8 bits, tiled", "bits": 8, "colour": "rgb", "tile":
                                  16}, {"what": "RGB, 16 bits", "bits": 16, "colour": "rgb"},
        {"what": "RGB, 16 bits, big endian", "bits": 16, "colour": "rgb", "order": ">"}, {
            "what": "RGB, 16 bits, separate planes", "bits": 16, "colour": "rgb", "planes": True, "refused": "planes"
        }, {"what": "RGB, 12 of 16 bits used", "bits": 16, "colour": "rgb", "top": 4095, "refused":
            "low bits"}, {"what": "RGB, 32 bits", "bits": 32, "colour": "rgb", "refused":
                          "not read"}, {"what": "RGBA, 8 bits", "bits": 8, "colour": "rgba"}, {
                              "what": "RGBA, 8 bits, premultiplied", "bits": 8, "colour": "rgba premultiplied"
                          }, {"what": "RGBA, 16 bits", "bits": 16, "colour":
                              "rgba"}, {"what": "RGB and an unknown channel, 8 bits", "bits": 8, "colour":
                                        "rgbx"}, {"what": "CMYK, 8 bits", "bits": 8, "colour":
                                                  "cmyk"}, {"what": "palette, 1 bit", "bits": 1, "colour": "palette"},
        {"what": "palette, 4 bits", "bits": 4,
         "colour": "palette"}, {"what": "palette, 8 bits", "bits": 8, "colour": "palette"}, {
             "what": "palette, 8 bits, a colour map of 8 bits", "bits": 8, "colour": "palette 8"
         }, {"what": "CIELAB", "bits": 8, "colour":
             "lab"}, {"what": "grey, 16 bits, to be rotated", "bits": 16, "colour": "black", "rotated": True}, ]
PPM = [
    {"what": "PBM, text", "colour": "P1", "top": 1},
    {"what": "PBM, bytes", "colour": "P4", "top": 1},
    {"what": "PGM, text, white is 15", "colour": "P2", "top": 15},
    {"what": "PGM, text, white is 4095", "colour": "P2", "top": 4095},
    {"what": "PGM, bytes, white is 255", "colour": "P5", "top": 255},
    {"what": "PGM, bytes, white is 4095", "colour": "P5", "top": 4095},
    {"what": "PGM, bytes, white is 65535", "colour": "P5", "top": 65535},
    {"what": "PPM, text, white is 15", "colour": "P3", "top": 15},
    {"what": "PPM, bytes, white is 255", "colour": "P6", "top": 255},
    {"what": "PPM, bytes, white is 65535", "colour": "P6", "top": 65535},
]
JPEG = [
    {"what": "grey", "colour": "L"},
    {"what": "RGB", "colour": "RGB"},
    {"what": "CMYK", "colour": "CMYK"},
    {"what": "several pictures in one file (MPO): the first", "colour": "RGB", "save_as": "MPO"},
]
WEBP = [
    {"what": "RGB", "colour": "RGB", "save": {"lossless": True}},
    {"what": "RGBA", "colour": "RGBA", "save": {"lossless": True, "exact": True}},
]
BMP = [
    {"what": "1 bit", "colour": "1"},
    {"what": "grey, 8 bits", "colour": "L"},
    {"what": "palette, 8 bits", "colour": "P"},
    {"what": "RGB", "colour": "RGB"},
]
GIF = [
    {"what": "palette; of an animation the first frame", "colour": "P", "save": {"save_all": True, "append_images": 1}},
    {"what": "grey", "colour": "L"},
    {"what": "a transparent colour", "colour": "P", "save": {"transparency": 3}},
]

CASES = {"PNG": PNG, "TIFF": TIFF, "PPM": PPM, "JPEG": JPEG, "WebP": WEBP, "BMP": BMP, "GIF": GIF}
