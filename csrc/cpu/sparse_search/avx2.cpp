#include "cpu/sparse_search.inl"
