"""The proof: a language model is trained on the rows that each method picked, at equal token budgets.

plan        what is compared, on which topics, how the model is trained: said before the first run
derived     a plan for a run: its recipe, its corpus with labels, its model
split       which rows are held out, targets, warm-up, pool
noise       rows planted into the pool: copies, boilerplate, another language
arms        rows in the order in which a method takes them
upper       a causal model of which the upper blocks are trained, on stored activations of the lower ones
training    steps over rows, and losses on the way
statistics  paired tests, intervals over topics, the compute multiplier
grid        every run of a plan, each with a file of its own, so that they resume
summary     what the runs say together
page        the page with curves and tables
"""
