#include "cpu/sparse_search/screen.inl"
// After what it is made of.
#include "cpu/sparse_search/rows.inl"
