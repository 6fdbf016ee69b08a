#include "cpu/sparse.inl"
