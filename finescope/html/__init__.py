"""HTML of what strangers wrote: it is shown as it is, and comes to nothing else.

plain     characters that would break or rearrange a page, replaced
engine    what renders all templates, and escapes whatever comes from data
notebook  a result as a notebook shows it: a few words and the first rows
"""
