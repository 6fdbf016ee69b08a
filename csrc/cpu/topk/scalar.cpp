#include "cpu/topk/tile.inl"
