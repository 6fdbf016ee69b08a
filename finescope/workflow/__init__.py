"""The main job as stages. Each reads files and writes files, so that any of them can be run again alone.

activations → train → embed → score → select → evaluate → report
"""
