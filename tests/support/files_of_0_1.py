# SPDX-License-Identifier: Apache-2.0
"""Files that version 0.1 wrote, compressed; later versions must read them for ever."""

from __future__ import annotations

import zlib
from base64 import b85decode

# save(path, rk.LSTM(2, 1, forget_bias=1.0, seed=3),
#      extra={"mean": np.arange(3.0), "steps": np.array(7)}, notes={"why": "für später"})
LSTM = """
c-oDTzl#$=6vqRCKN<^5t7SnD3}G`nSrfq|g$jaV;dPfdOlIF?2RF0J%<P>p1nli>)z*JNEKN=X5fuLeOZx+@#hFRGyBq<X>
b>uK^Z7pB>z}FlHwy`wfT1Zhl#uX7FbkEGk3q=>%c<5@3GY4JxgXYp<3b_17`w`B5RRx}8R0@{Gq4h;xrTaRbwRZgjH=doDi
kmy3Q6;gPF76H%7D{kmFG@MVNWox*m7A7LNBVKEGq93H6pK=X}Rv=c|lE#R-L?1V=(0J2+dV@Cejon(c-E9({!4U*7`_7PLk
Dx<a7#3A9dNeE2TghBBU@Y!%7NkGg%pGfYizH-0evg1{(X>)NP0lswm=21-f(*U<2ypE_FsxD{-B1)M4#rGfI-{xYc4w$}y&
>onXdk!bTBv>~G8?ju7p%M=dr&Yy=cD#A%Cn(r|9E@Wd$Em;jajlzu@DekZ}s)w=n7Hy+x|-@M>lgK>A>wOc}Xc#P2oO1;Us
dy2CSgK#~Fk>|JzkUTmyON=%ccpD_Px4>-=*#|Ms49T*8lj=cp8w|JWL4r@h#DBriHdtZ{on$zl2kzB2-eGSY^v|t>AD1pJY
PDy*gXcfH-(QN}Z+zJO{Pp(o!^cO9cj1MbU#{#dKOLN1zUg1?y|{I?OTIl=E`FU~ync1<{oACm`~!Q%9uE
"""
# The adder of Settings(digits=1, hidden=1, batch=4, steps=6, share=0.5, cell="rnn") after 3 of its
# steps: a point of its history is (3, 1.5, loss, 0.25).
HALF = """
c-pO&4Qvx-7{?b0pvZ^O1OuYXYLLlN+q>)a+TOJ!Q*ffgh<wZq>-Fxv^=8-W?yiHe4G=*-76hWAiJ}q%Lxd19F|zjV_zE9Wa
PtEcgM7%ci4su23_<XHuY+}?WlN4rmhF9>r@#OEKL6*vZpq*r^Qo}~gB3t!c~)hEL7O+X#wJIjuL3!0=OV14z=&-MsKnrpEk
Cy_Cq)IZ3?*wyZ6T2tWx%PT6lEi&FetDQ1?1<#jHIBo(}5Noh?v<@+Y3cSrMBy#pcF%&Gz)9$%&1fmi>m+yqVY%sg?PY8Jdl
Ie89n1^jILCb$bpm~7mKF^d0C1{aTP@!c5_#}S{>`G5+V|-;#jH@q;EYe@;rzJ6>*MP>O`?<ydoH3tAVWC2q^&YCfZy`ahU_
bDv4u5W`$XzvT_+v)1!5$uTe<_b{2}rojv8nGEwa!cl8cBklJ8sPd6%hY$dxViV9+89f?*IVidNzTjN5k%7syYFu8JPvm9nU
7ZGEoNUD1otm@u`Fe`%;z*Uz%Krn&1NOV}Y#{mQnaPb7`a<UGd_26!&5Ms^01<HwG0?+ff$3r=Jfp<|(fv0#}pg4hL38yn;g
EM0TvsIae4P-0q=K0J)HmyYxg(QKrp{BVmnF$x>z)OOl02Ni2!0l2qyHH_KQ6;&$J7+=<4(v3MiABM<BMm0Uqqhd(nJ5I@5=
oet&M~)#L{<q#96ew-)_qr*U?en?q`JXo0kJHs2E*ariTSyiq41z?EE81h8#E);jiC&g>R;6A!66CaFh@6>^`k=~!V;OVRt^
u5Fh!=1qB+%qC@ZSn`W!fsXU<O3vhr_3e@qwMWS?{_HOvkD#V|)^A?x#lA)~SDMrY$&Zy1J*$1ti-I#wD6HK0(o34mXY@P%&
ns~3J|II<mglDCAX4$&JvOP_FbpK<agzZE!AQT{gE5XeRXL@xr?9mml-8Nd0eXBM(zIgTzp;l#2iS-&KZjReSE1g!UrK<*Qm
qi;f1dPbmoPh=efi}!>;-n$&st?8C73Zz2`SITsY+l3g&@{s8)Yn$_s=${+tV_mNK^vg+q?i`=`-4Uo{HtsGw(7$ut9LSd6+
)fz9&hkL`LMx**jR~Bdw?iY|dW~*-%5SV)(Wq~!Kd-O7XShH4#3}zg`$7GYGbi*HkDt^h&$!=srM%V<sk%U(=kCBS@oC0FzD
38IAJF&Kuhy@WJ@5Bc(#D^g&oS$p-=hb#oYiepzhRL2%963kALmWbq~i+`p&1tw)9-3)+<9PMW6MKp5@Sw{*HO*a%Zv2peP3
v`M+P!yMvdOqT%OQERBdwVv->?L-!i?!d$ehJa?!Fi$<pyV8V^kym$=$L!nDpGWcW9XGv?EOB)68l%TT1(KXly@ruEq43@CU
o@aw9}+WB{u`mYtg&&-Ye=0CiCWZ>}SoyoaFWNoTESRcIQ6Rmy2Fm2NQJB&BmH0Ix*BKo~wF3?_Y*v*_=^|udcA1)v3`S14;
zLr7j+;5!Aql(|2PtIN~kslx3?q0dLmPR#CpZk<P*s;hr>a${RYsGN<+NrO6Rjw(XpWOun$`_oDkr(&WdnS&iyxYGU;C^|<V
)w4+E_>_iuQC49ihtmqeEM_mWO_ZANk<B*=nHKQnm%LqZ!Bu^MV9<UC)-E(2x=2ERCD_e9n16aV@J|W-{#QrOHa~M+H>fM4I
Rwty$!xcFKng3!$-W;{W)XVwuRdFV3IK_R;Vw?8xpwh%2qvicC>M6R%Kw=2b$j{wCPJ5Ipd#?<^<GT4n6VM4(*u&ht6NUr2h
~dWE3_ebbjdxUGMjyf8!X=V6;ul|8Lgxvj
"""
# The same after all its steps.
WHOLE = """
c-pO&e{2(F7{})yLw*cgTo{a)Q7=)%%%;7&Ua#%_fIl<>0poxn*`Qvp*Y(`>uH0P*bB+N~K|uVqurYpVoB<3WBSHvWd&dvOD
1s6-(FDg(GQ$EI1QEoj?|U7r8!cOMT+%e}^FIB2pZEDbZ`*Z61=iDu1cNa_=fa%M1%rs+(TJ$BTqmfqlb1M60}*7tunYw+q{
1<<r^pep7H&4yAR#d<ssgWzip)thAQ<5!O{j2y9Yup{w+k+KL9%vhkji=UYLMHZpc03lv=SSetf&%;Cv*V@<b))_P*~uVu%H
HSGls^q7z11NA}?eF`FJ8D7*>_IlF(t)<+Q2_>kaY#tcav=I)-L4h3wL!VmK_wK}~$wN_E4SoQMS_u0c?>J0VRF!WP<EC<&D
pg7pf|g{%xKMd#F7LC=mh!M@6hE;u<LqW1SREY^zp0C}Kyz=2GGnVRlo3@IhQCz>wAtvmv*VxkOMJ*aUZPUoXAfLmO(zgaFT
pO?hAC6ei04yy(?A<C&j2H<JR9w4xRdI)$}%*Xq@m<#36aES8=ZqChPB;gJ5f{zUQygY|{FqhAVafI6w;v*iCCvXxcd?W$V2
p5WgnL&gVy2^nDaxtfMK5LLIYoWv}0*Bf_(^^+A0Sjy3l}JPrbeLTY$|aW!prWFtD{8}F&ND+epwoCR77606ESQ>*?+wCoQE
*Tafm@jVF?WVUP76w|AutRbTvaX@0n8-GL9pe5SR2)Y(dh8R3P)}zIH(uR1r<jI%}Mp5aEHkBPquq-Kms__H3(<_=zs{ZcrL
7+!viGPBC<!(n(BzCYP!?@9Jrxp?tatq^6x``EEm1Rh;(c<%nSTQQCDsu`}2cBqtV+&=i}RN7z&L?QF25&b{YmWfKa{(06&i
43*GA1F#OzbXglU6?g`HvVmN%BK4I`aW5iv4Yha}0@O`);fDHxkVFc_uj=}F_?Cz_cTgZ;(7`*hj8_lC+|B?VU6d;BXu-`Kr
x{sr-kqO!984m9~o_7pv-V+>p?{Sg$rrWwGfDR-)8Pjc+3owA?BeGfcit`ch&kgXg$zeUC3bLQkGcxZt*k$y`pUyf}*uVaU&
Ad;(v;XYa$#kN-a7GD_nJ0davPCy9(O7sI`^)HL`pP3)sIGr06Y(E5Trd1#Y+N&ixp}FVX?C7AoW<vilaqQ3_r}R)b9<xNv2
G>%-hv|b@6aN%v;2(lz}YgRD$ruQv7wS_pFo+TOK#B8vT7=hRGFu5RWn7!WNP~IKf90<9qDxoE_97ccc!jNyOSqF?<R{Dl^K
kmF<^zl*|hP+?8l80EyZ-p{!z)!Z%d7~DL<#S;QuA1YoTPIbz9eZ=6dS*{KwLZ&u>iD|9CVdO}tEh*qt(uAEC^~?WJjQ|7E(
SuY+-wwJ|$olzH<tFMIUY0(w{ZCB`^j$W*oMWSw&=*s-^sP9vKRr60Po!H8XLFb?b}HTJD4HG6}nQWKx}(&&+T(gwePQC7c2
U8p)hesFP`ukyj2f%4gt$O(?P?-TbbVpq3JsPv<hAK6O5`WH6Oq^Gx)Q~NGl^S}7{EBM1pP^x(MF<;{SDc%+MEKfVr=SANs@
mDsV_di!R%DeW~KfXOZ9f5NdQ`s}E>zUQ<d#T<XUsG@Q)zO`M#?#88?NsdgV&=E#UTWo;7`^nXwm@;od8Xs$d}eV$N1%9Y8&
zNEp=-YXj#~ahh%&K>Oy~0(s3${Cx;I%BSo1n(&i$!AO)_&#>Z!Q~e{mdJxA36Rc+6qGIzG;}EH#;r*7g}k<_M;9Y6Dx=>M^
v<sr14_6$ZKKFJo)<7_)p#(rEdt+qnADHs;`F&SYmErvC?VF6g-
"""


def content(text: str) -> bytes:
    """A file's bytes."""
    return zlib.decompress(b85decode("".join(text.split())))
