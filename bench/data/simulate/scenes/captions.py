"""Five sentences about a scene, as the annotators of COCO would write them: all true, no two the same."""

from bench.data.simulate.scenes.attributes import Scene, SceneObject

PLACE = {
    "field": "in a grassy field",
    "sea": "by the sea",
    "room": "in a room with {backdrop} walls",
    "city": "in front of {backdrop} city buildings",
    "desert": "in a sandy desert",
    "snow": "in the snow",
}
VIEW = {
    "field": "A green field",
    "sea": "A view of the sea",
    "room": "The inside of a room painted {backdrop}",
    "city": "A city street with {backdrop} buildings",
    "desert": "A desert landscape",
    "snow": "A snowy landscape",
}
TIME = {"day": "on a sunny day", "overcast": "on a cloudy day", "sunset": "at sunset", "night": "at night"}
NUMBER = {1: "One thing", 2: "Two things", 3: "Three things"}


def captions(scene: Scene) -> list[str]:
    """Describes a scene.

    Args:
        scene: The scene.

    Returns:
        Five distinct sentences that name its objects, their colours, sizes and places, the setting and the light.
    """
    place, view = (table[scene.setting].format(backdrop=scene.backdrop) for table in (PLACE, VIEW))
    time, main = TIME[scene.light], scene.dominant
    things = _listing([_article(_named(thing)) for thing in scene.objects])
    sized = _article(f"{_size_word(main)}{main.colour} {main.kind}")
    verb = "is" if len(scene.objects) == 1 else "are"
    return [
        f"{_capital(things)} {place} {time}.",
        f"{view} {time} with {things}.",
        f"There is {sized} {_position(main)} of the picture, {place}.",
        _relation(scene, time),
        f"{NUMBER[len(scene.objects)]} can be seen {time}, namely {things}, which {verb} {place}.",
    ]


def _relation(scene: Scene, time: str) -> str:
    """A sentence on where the two outermost objects stand to each other, or on the only one."""
    ordered = sorted(scene.objects, key=lambda thing: thing.x)
    if len(ordered) == 1:
        return f"{_capital(_article(_named(ordered[0])))} alone {time}."
    return f"{_capital(_article(_named(ordered[0])))} to the left of {_article(_named(ordered[-1]))} {time}."


def _named(thing: SceneObject) -> str:
    return f"{thing.colour} {thing.kind}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _listing(words: list[str]) -> str:
    """Joins words as English does: ``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _size_word(thing: SceneObject) -> str:
    if thing.size < 0.17:
        return "small "
    return "large " if thing.size > 0.23 else ""


def _position(thing: SceneObject) -> str:
    """Where an object stands, in thirds of the width."""
    if thing.x < 0.4:
        return "on the left"
    return "on the right" if thing.x > 0.6 else "in the middle"
