#include "cpu/sparse_search/screen.inl"
