"""Common English words. No word is a part of another one, so a string match of one word cannot be that of another."""

_ADJECTIVES = """
brave bright broad calm cheap clever cold cruel damp deep dull eager empty faint fancy fierce firm flat formal fresh gentle
giant glad grand harsh heavy hollow honest humble idle jolly keen kind large lazy lively lonely loud lucky mighty mild
modern noisy neat noble odd plain polite proud pure quick quiet rapid rare rough royal sharp shiny shy silent simple slow
smooth soft solid sour stiff strict strong sudden sweet swift tall tender thick tidy tiny vague vast warm weak wide wild
wise witty young
"""
_NOUNS = """
anchor apple arrow basket beach bell bottle branch bridge bucket butter button candle canyon carpet castle cheese cherry
circle comet coffee copper cotton crown desert dragon drum eagle engine falcon feather fence field finger flame forest
fountain garden ghost glass glove grape guitar hammer harbor honey horse island jacket jewel kettle kitchen ladder lantern
lemon letter lion market meadow mirror monkey mountain needle ocean office onion orange oven palace paper parrot pencil
pepper piano pillow pirate planet pocket potato puzzle rabbit ribbon river rocket saddle sailor salad school shadow shovel
silver spider spoon squirrel statue storm summer table temple thunder tiger tower train trumpet tunnel turtle umbrella
valley velvet village violin wagon walnut weather wheel whistle window winter wizard wolf yard zebra
"""
_VERBS = """
accept admire agree argue arrive bake behave borrow build carry celebrate choose climb collect count create decide defend
deliver describe discover divide draw drift escape enjoy explore follow forget gather guess hunt improve invent invite jump
knock laugh learn listen measure notice observe obtain paint polish prepare protect publish raise reach receive remember
repeat rescue search shout sing skate sleep solve spend squeeze study suggest swim teach travel unpack visit wander wash
whisper write yell
"""
ADJECTIVES, NOUNS, VERBS = (tuple(words.split()) for words in (_ADJECTIVES, _NOUNS, _VERBS))
WORDS = (*ADJECTIVES, *NOUNS, *VERBS)
