#include "cpu/topk_tile.inl"
