autocmd BufRead,BufNewFile *.rhai setfiletype amscript
