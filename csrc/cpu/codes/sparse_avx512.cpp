#include "cpu/codes/sparse.inl"
