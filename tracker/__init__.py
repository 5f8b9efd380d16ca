from .kernel_cache import choose_kernel_cache

choose_kernel_cache()  # before any module here imports Numba
