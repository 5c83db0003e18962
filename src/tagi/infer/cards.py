"""The model card of a checkpoint."""

from tagi.methods import Method
from tagi.model.cards import card
from tagi.model.checkpoint import BACKBONE


def checkpoint_card(method: Method, backbone: str) -> str:
    """What a checkpoint is, of a method and around a language model, and how to use it."""
    base = None if backbone == BACKBONE else backbone
    under = "The language model lies in `backbone/`." if base is None else f"The language model is {base}."
    use = "from tagi import Tagi\n\ntagi = Tagi.from_pretrained(FOLDER)\n"
    if method.adapts:
        use += 'adapter = tagi.adapt("What to do, in plain English.")\nprint(tagi.generate(["An input."], adapter))'
    else:
        use += 'print(tagi.solve("What to do, in plain English.", ["An input."]))'
    about = f"Method: {method.title} (`{method.name}`). {under}"
    return card("TAGI checkpoint", about, use, base=base, library_name="tagi", tags=["tagi", "text2text-generation"])
