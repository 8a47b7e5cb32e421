"""Names of COCO's categories (Lin et al., Microsoft COCO, 2014)."""

_ALL = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, -, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
elephant, bear, zebra, giraffe, -, backpack, umbrella, -, -, handbag, tie, suitcase,
frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl, banana,
apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
potted plant, bed, -, dining table, -, -, toilet, -, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, -, book, clock,
vase, scissors, teddy bear, hair drier, toothbrush
"""

COCO_IDS = tuple(" ".join(_ALL.split()).split(", "))
"""By category id less 1, as torchvision's labels: 90 names, "-" where there is none."""

COCO = tuple(name for name in COCO_IDS if name != "-")
"""The 80 categories in order, as detectron2's labels."""


def class_names(count: int) -> tuple[str, ...]:
    """Name so many classes: COCO's, where the number says so, else by number.

    Example:
        >>> class_names(80)[79], class_names(90)[89], class_names(2)
        ('toothbrush', 'toothbrush', ('1', '2'))
    """
    known = {len(COCO_IDS): COCO_IDS, len(COCO): COCO}
    return known.get(count) or tuple(str(n) for n in range(1, count + 1))
