#include "cpu/codes/training.inl"
