"""Pure decisions: the nouns, the errors, and every rule that needs neither clock nor socket.

Nothing here waits, logs, reads the environment or draws a random number; `now` and `draw` come in
as arguments. `model` names the nouns, `errors` says what each failure means.
"""
