"""What ``choose_default`` measures: corpora, what layers make of them, and the candidates."""
