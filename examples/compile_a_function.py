"""One sentence becomes a function: the instruction is read once, and every call reads its input alone.

python examples/compile_a_function.py [CHECKPOINT]
"""

import sys

from tagi import Tagi

tagi = Tagi.from_pretrained(*sys.argv[1:2])  # without an argument, the bundled default
city = tagi.task("Name the city in the text.")

print(city("We met in Oslo last May."))
print(city.batch(["The train to Lyon was late.", "It rains in Lima again."]))
print(city.choose("We met in Oslo last May.", ["Oslo", "Rome"]))  # the likelier of given answers
print(*city.stream("Is Bergen far?"), sep="")

# Worked examples are read with the instruction, once like it.
shown = tagi.task("Name the city in the text.", demonstrations=[("I left Cairo.", "Cairo")])
print(shown("We met in Oslo last May."))

city.save_pretrained("city")  # for tagi.load_adapter, and for `tagi run --adapter city`
print(tagi.generate(["We flew home from Rome."], tagi.load_adapter("city")))
