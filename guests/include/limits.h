/* SPDX-License-Identifier: MIT */
/* What gcc's own <limits.h> includes next; a guest needs nothing beyond that one. */
