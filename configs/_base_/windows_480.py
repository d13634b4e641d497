# For what takes images of its img_size only: 480x480, and larger images are tested by windows.
windows_480 = dict(
    data_preprocessor=dict(size=(480, 480)),
    backbone=dict(backbone=dict(img_size=(480, 480))),
    test_cfg=dict(crop_size=(480, 480), stride=(320, 320)),
)
