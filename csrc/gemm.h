// y = x . W^T + bias for many rows of x: bound by arithmetic, so blocks of W are converted and
// transposed into cache first (the panels of Goto and van de Geijn, "Anatomy of High-Performance
// Matrix Multiplication", 2008). Takes linear.h's arguments.
#pragma once

#include "linear.h"
